"""The scheduler and all that it decides with: standard library only, so that it runs anywhere.

Read in this order: `request`, `block_pool`, `kv_cache_manager`, `request_queue`, `scheduler`.
"""

from minivllm.core.async_scheduler import AsyncScheduler
from minivllm.core.block_pool import BlockPool, FreeKVCacheBlockQueue, KVCacheBlock
from minivllm.core.config import SchedulerConfig
from minivllm.core.kv_cache_manager import KVCacheManager, check_enough_kv_cache_memory
from minivllm.core.observer import SchedulerObserver
from minivllm.core.output import AdmissionStop, EngineCoreOutput, Preemption, SchedulerOutput
from minivllm.core.prompt import TokenizedPrompt
from minivllm.core.request import Request, RequestStatus
from minivllm.core.request_queue import FCFSRequestQueue, PriorityRequestQueue
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.scheduler import Scheduler
from minivllm.core.stats import RequestMetrics, SchedulerStats, StepStats
from minivllm.core.victim import VICTIM_POLICIES, VictimPolicy

__all__ = [
    "VICTIM_POLICIES",
    "AdmissionStop",
    "AsyncScheduler",
    "BlockPool",
    "EngineCoreOutput",
    "FCFSRequestQueue",
    "FreeKVCacheBlockQueue",
    "KVCacheBlock",
    "KVCacheManager",
    "Preemption",
    "PriorityRequestQueue",
    "Request",
    "RequestMetrics",
    "RequestStatus",
    "SamplingParams",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerObserver",
    "SchedulerOutput",
    "SchedulerStats",
    "StepStats",
    "TokenizedPrompt",
    "VictimPolicy",
    "check_enough_kv_cache_memory",
]
