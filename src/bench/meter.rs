//! Time and memory of a piece of work, and what machine it ran on.

use super::report::Machine;
use crate::base::error::Result;
use crate::base::free_space::filesystem_type;
use std::path::Path;
use std::time::Instant;

/// What a piece of work took.
pub struct Metered<T> {
    /// What it gave.
    pub value: T,
    /// How long it took.
    pub seconds: f64,
    /// The most that this process had resident meanwhile, mapped files included.
    pub peak_bytes: Option<u64>,
}

/// Runs `work` and measures it.
pub fn metered<T>(work: impl FnOnce() -> Result<T>) -> Result<Metered<T>> {
    // proc(5): writing 5 sets the peak back to what is resident now.
    let is_reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let begun = Instant::now();
    let value = work()?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak_bytes = if is_reset { kib_of("/proc/self/status", "VmHWM:") } else { None };
    Ok(Metered { value, seconds, peak_bytes })
}

/// A number of KiB behind a key, in bytes.
fn kib_of(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// This machine.
pub fn machine(folder: &Path) -> Machine {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches(['\t', ' ', ':']).to_owned());
    let system = nix::sys::utsname::uname();
    let word = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let kernel = system.map(|s| format!("{} {}", word(s.sysname()), word(s.release())));
    Machine {
        processor: model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: kib_of("/proc/meminfo", "MemTotal:").unwrap_or(0),
        kernel: kernel.unwrap_or_default(),
        filesystem: filesystem_type(folder).unwrap_or_else(|| "?".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_is_that_of_the_work_alone() {
        let touch = |mib: usize| {
            let bytes = vec![1u8; mib << 20];
            Ok(bytes.iter().map(|b| u64::from(*b)).sum::<u64>())
        };
        let large = metered(|| touch(64)).unwrap();
        let small = metered(|| touch(1)).unwrap();
        assert_eq!((large.value, small.value), (64 << 20, 1 << 20));
        let (Some(large), Some(small)) = (large.peak_bytes, small.peak_bytes) else {
            println!("skipped: this system does not tell the peak");
            return;
        };
        // Other tests run in the same process.
        assert!(large > 64 << 20, "{large}");
        assert!(small > 1 << 20, "{small}");
    }

    #[test]
    fn the_machine_is_described() {
        let machine = machine(Path::new("/"));
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20, "{machine:?}");
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
    }
}
