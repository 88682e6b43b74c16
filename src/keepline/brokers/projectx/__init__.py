"""ProjectX Gateway (TopstepX and others): every call is a POST, and a no comes inside a 200."""
