"""Many files from a plan: every source with every adapter as every type.

document    YAML as plain values, with the line of each; variables put in
schema      what a plan may say (pydantic); nothing else imports that, so no other command waits
reading     a plan read and checked, every fault with its file and line
matrix      the jobs that a plan means
opening     what a group of jobs reads, opened once
fingerprint what an output is made of, as far as a later run must know it
journal     what became of an output, beside it
states      which jobs are done, which are left and which are refused
needs       disk and memory, against what is there
running     one job after the other
result      what is known of every job, as a table and as JSON
"""
