"""Files become records, from any position on, with every one that cannot be used named and none held back."""
