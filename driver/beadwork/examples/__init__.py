"""Inputs and models that come with the package, and a folder of one's own made from them.

`shipped-inputs` and `shipped-models` are links to the repository's inputs/ and models/; a wheel has the files. No
package can have such a name, or setuptools would take the folders for some.
"""
