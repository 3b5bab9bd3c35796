"""``python -m alibi_attention.cli``, for where the script is not on the path."""

from alibi_attention.cli import main

main()
