"""What is right, computed by the plainest means; shares no code with the package."""
