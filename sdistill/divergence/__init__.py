"""What the teacher sees, who the teacher is, and how far the student is from it."""
