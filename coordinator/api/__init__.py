"""The coordinator's two gRPC services: they translate, authorise, call and map errors.

Nothing is decided here. What leaves or enters as a message is a noun of coordinator/model.py on
the other side of this package.
"""
