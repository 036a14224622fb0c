"""What people look at: pictures, and the pages of a report for the browser."""
