"""What the endpoint counts and logs."""
