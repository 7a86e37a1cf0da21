"""How far the student is from the teacher, token by token."""
