"""A server: a JSON API over a trained model, and a page to try it in a browser.

``__main__`` is the command line, ``http`` the sockets, ``app`` the routes, ``conversations`` what a
request may hold, ``batcher`` the queue in front of the model, ``warm_up`` what that is compiled for
at first, ``openapi`` the API's description.
"""
