"""What runs next: pure functions and small state machines over ints; time is passed in."""
