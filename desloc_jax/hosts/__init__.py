"""One run in several processes: joining, agreeing, being told to stop, losing one."""
