"""The tables of a board as data, in a module for each of its parts; ``contents`` has all of them."""
