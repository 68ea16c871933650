"""Hostile inputs for every parser of foreign bytes.

Each script has ``one_input(data)``, which raises when a parser does anything but read or refuse with its own error, and
``SEEDS`` and ``TOKENS`` to start from.  ``python -m fuzz SECONDS [NAME ...]`` mutates the seeds without any further
package; coverage-guided fuzzers take the same function, such as atheris::

    python -c "import atheris, sys; from fuzz import fuzz_nrbf; atheris.Setup(sys.argv, fuzz_nrbf.one_input); atheris.Fuzz()"
"""
