"""Records -> one self-contained HTML file. Never torch, never a method."""
