"""The number of this version: below everything, since files say who made them."""

VERSION = "0.1.0"
