"""The product broken at random, one comparison, operator or condition at a time: do the tests notice?

``python -m tests.mutations --sample N --seed S``
"""
