"""Many files from a plan: every source with every adapter as every type.

document    YAML as plain values, with the line of each; variables put in
schema      what a plan may say (pydantic); nothing else imports that, so no other command waits
reading     a plan read and checked, every fault with its file and line
matrix      the jobs that a plan means
foreign     jobs whose sources llama.cpp's converter reads
opening     what a group of jobs reads, opened once
fingerprint what an output is made of, as far as a later run must know it
journal     what became of an output, beside it
states      which jobs are done, which are left and which are refused
places      where results go, and whether that is still there
needs       disk and memory, against what is there
running     one job after the other
shares      how many workers a machine has, and what each gets of it
portions    a group of jobs as a batch of its own, which another process can run
workers     several processes of this machine; `worker` is each of them
ray_cluster the nodes of a Ray cluster; `ray_task` is what they run, `nodes` what it asks for
gathering   what several workers tell, as if it were one; `throttle` lets them tell less
lost        what becomes of the jobs of a worker that has died
calibrating importance that is collected once for a source with its adapters
targets     where results are sent; `pushing` sends them
matching    which jobs a rule of the plan is for
measuring   who measures results
evaluations what that means
work        what a process does with a portion
evaluating  results measured when they are made
logs        what jobs reported, beside their journals
result      what is known of every job, as a table and as JSON
summary_page the same as a page
"""
