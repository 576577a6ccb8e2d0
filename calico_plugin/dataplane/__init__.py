"""What the kernel should have and has: links, routes, nftables. It makes what it is told and decides nothing (style,
table of imports).
"""
