"""Self-checks by running: the source's class against our reading of it, the result in the class that its user has.

source     before anything is fitted: attention modules of the installed class on random inputs
stored     the written files: whole, finite, the names and shapes of the class
result     the folder loaded by its Auto class in a process without this package, decoding, caching, tokenizer
"""
