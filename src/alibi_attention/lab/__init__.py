"""Train short, test long: one small decoder, several position methods, the same bytes.

Needs the ``lab`` extra: ``pip install 'alibi-attention[lab]'``. The command line over it is ``alibi extrapolate``.
"""
