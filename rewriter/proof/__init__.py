"""The proof of a rule from its own entry: drawn inputs, the pattern as the reference program, the rewritten program.

- What is drawn: `sample`, `layouts`, `drawing`; whether anything can be: `entry`.
- The two programs: `program` and `oracle` for the pattern, with `inside` for what its ops round and `losses` for what a
  rule gives away; `fused` for the rewritten one, with `interpreter` for its kernels on a CPU.
- One example: `trial`, with `fences`, `comparison` by `tolerance`, and `cause` for what went wrong.
- A proof: `check`. What must not pass it: `mutants*`.
- Many proofs on a machine: `campaign`, with `jobs`, `pool` and `worker`.
- Their speed at the `sites` of real models: `timing`.
- What came out: `outcome` for one proof, `results` for all, kept by `verdict`, shown by `summary` and `page`.
- What it holds for: `machine`, and `code` with `native` for the files that a rule's ops depend on; `since` keeps what
  still holds and leaves the rest to be proved anew.
"""
