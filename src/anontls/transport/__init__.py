"""The running transport: sessions on sockets that select, negotiate, present and check certificates."""
