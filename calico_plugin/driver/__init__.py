"""Docker's network and IPAM driver: Flask blueprints under gunicorn on two unix sockets. It never calls Docker
(docs/driver.md).
"""
