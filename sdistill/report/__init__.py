"""What a report is made of: runs as they are on disk, tables, traces, and the page."""
