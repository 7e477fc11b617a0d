"""Every layer's new form."""
