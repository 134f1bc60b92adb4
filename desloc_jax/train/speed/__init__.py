"""What keeps devices busy: reading ahead, running ahead, kept programs; and what shows how busy."""
