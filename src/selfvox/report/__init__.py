"""What people look at: pictures, the demo, and what this installation can do."""
