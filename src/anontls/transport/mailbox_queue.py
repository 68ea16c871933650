"""The queue of the mailboxes of this machine."""

from __future__ import annotations

from anontls.smtp import Reply
from anontls.transport.body import Body
from anontls.transport.destination_queue import DestinationQueue, Job

NOT_WRITTEN = Reply(451, ("4.3.0 Mailbox cannot be reached; try again",))
AT_A_TIME = 256  # messages that are being written


class MailboxQueue(DestinationQueue):
    """What waits for a Maildir."""

    def _send(self) -> None:
        while len(self.in_flight) < AT_A_TIME and (job := self._take()) is not None:
            self._task(self._write(job))

    async def _write(self, job: Job) -> None:
        try:
            with Body() as body:
                content = self.owner.content(job.queued)
                for piece in (content,) if isinstance(content, bytes) else content:
                    body.add(piece)
                body.complete()
                reply = await self.owner.deliver_here(job.envelope, body)
        except Exception as e:  # noqa: BLE001 whatever goes wrong, the message stays in the queue
            self.owner.failed_here(e)
            reply = NOT_WRITTEN
        else:
            self._recovered()
        del self.in_flight[job.queued.id]
        self.owner.settle(self, job, (reply,) * len(job.pending), None)
        self.wake()
