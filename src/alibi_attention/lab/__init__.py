"""Train short, test long: one small decoder, several position methods, the same bytes.

Needs the ``lab`` extra: ``pip install -c constraints.txt '.[lab]'`` in a checkout. The command line over it
is ``alibi extrapolate``.
"""
