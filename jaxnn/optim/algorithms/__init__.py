"""One optimizer a file: equations and source, a state, a core (the direction) and a ready-made form."""
