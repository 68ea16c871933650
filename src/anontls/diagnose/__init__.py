"""What can be found out about servers from outside."""
