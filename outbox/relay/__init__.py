"""What we do about what happened: lanes turn pending deliveries into attempts, and attempts into records."""
