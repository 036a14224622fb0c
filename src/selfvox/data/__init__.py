"""From files to crops: sources find cases, formats read them, preparation makes the arrays."""
