"""What can be set: every option, its checks, and what may change at a restart."""
