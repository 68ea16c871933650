"""Where a message goes from a server, and by which connector: decided from facts, explained like a selection."""

from anontls.delivery.hop import Candidate, End, Hop, Kind, Outcome, Route, Step
from anontls.delivery.routing import route
from anontls.delivery.sites import SiteLink

__all__ = ["Candidate", "End", "Hop", "Kind", "Outcome", "Route", "SiteLink", "Step", "route"]
