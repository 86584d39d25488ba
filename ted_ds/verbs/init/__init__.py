"""The verb ``init``: a first recipe for a teacher and data, from what can be found out about them."""
