"""What each kind of stage trains or makes."""
