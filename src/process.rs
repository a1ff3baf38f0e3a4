//! What the system is told about a process that computes all day.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, fs, io};

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Where glibc reads how its allocator is to behave.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Prepares this process for computing; to be called first of all, before there are other threads. It must not be called by a
/// process whose arguments do not tell all that it is to do, for it may begin anew.
///
/// * Large pages for what ONNX Runtime allocates: its networks are megabytes that every run reads, and on a busy server small
///   pages have to be looked up again and again (`GLIBC_TUNABLES=glibc.malloc.hugetlb=0 facewise serve` shows the difference).
///   glibc decides about that when a process starts, so this one starts itself anew, once, with the same arguments and the same
///   number, unless `GLIBC_TUNABLES` is set already.
/// * The policy `SCHED_BATCH`: a thread that wakes up to hand a request on waits for the end of a time slice rather than take a
///   core from a run with warm caches. An idle core is taken at once as before.
///
/// # Errors
/// When this program's file cannot be started. What the system refuses otherwise is left as it was: it is about speed only.
pub fn prepare_to_compute() -> io::Result<()> {
    if cfg!(target_env = "gnu") && env::var_os(TUNABLES).is_none() {
        let mut anew = Command::new(env::current_exe()?);
        return Err(anew.args(env::args_os().skip(1)).env(TUNABLES, "glibc.malloc.hugetlb=1").exec());
    }
    // The call that sets the policy sets the niceness, too: one that somebody has chosen is not touched.
    if niceness() == Some(0) {
        let middle = ThreadPriority::Crossplatform(ThreadPriorityValue::try_from(50).unwrap_or_default());
        let batch = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
        let _ = set_thread_priority_and_policy(thread_native_id(), middle, batch);
    }
    Ok(())
}

/// How nice this process is to others, from -20 to 19 (proc(5), `/proc/pid/stat`, field 19).
fn niceness() -> Option<i8> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, in which anything may stand.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(16)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_niceness_of_this_process_is_known() {
        assert!(niceness().is_some_and(|nice| (-20..=19).contains(&nice)));
    }
}
