"""Grammars over tokens: what an answer must match, checked, compiled, and walked token by token.

`build` imports the grammar engine; only what compiles or walks a grammar imports these modules.
"""
