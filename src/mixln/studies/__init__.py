"""Studies: what takes several training runs."""

from mixln.studies.compare import Job, compare, plan_jobs, read_result
from mixln.studies.machine import describe_machine

__all__ = ["Job", "compare", "describe_machine", "plan_jobs", "read_result"]
