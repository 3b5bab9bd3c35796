"""ALiBi in other libraries' models, interfaces and file formats."""
