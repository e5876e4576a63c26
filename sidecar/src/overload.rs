//! What the process may use of memory and descriptors, and what gives way when it is nearly used up (LIFE-083,
//! LIFE-086, LIFE-087).

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::libc;

/// How close the process is to its memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Far enough.
    None = 0,
    /// 90 %: gateways accept no connection, idle upstream connections are closed.
    High = 1,
    /// 95 %: new requests get 503.
    Critical = 2,
}

impl Pressure {
    /// By resident memory and limit, in bytes.
    #[must_use]
    pub fn of(resident: u64, limit: u64) -> Self {
        let percent = |percent: u64| u128::from(resident) * 100 >= u128::from(limit) * u128::from(percent);
        if percent(95) {
            Self::Critical
        } else if percent(90) {
            Self::High
        } else {
            Self::None
        }
    }
}

/// The limits of the process and its present pressure.
#[derive(Debug)]
pub struct Overload {
    /// Limit that the pod states, in bytes; 0: none.
    stated: u64,
    /// Limit of the cgroup when the process began; 0: none.
    began: u64,
    pressure: AtomicU8,
    /// Looks since pressure began.
    looks: AtomicU32,
    resident: AtomicU64,
    /// Number above which a new descriptor is refused.
    most_descriptors: i32,
}

impl Overload {
    /// With the limit of memory that the pod states.
    #[must_use]
    pub fn new(stated: Option<u64>) -> Self {
        Self {
            stated: stated.unwrap_or(0),
            began: cgroup_limit().unwrap_or(0),
            pressure: AtomicU8::new(0),
            looks: AtomicU32::new(0),
            resident: AtomicU64::new(0),
            most_descriptors: most_descriptors(),
        }
    }

    /// The limit in force, in bytes. A cgroup that was changed since the start counts, as in-place resize does it.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        effective(self.stated, self.began, cgroup_limit().unwrap_or(0))
    }

    /// Looks at memory; called every second.
    pub fn look(&self) {
        let (mut resident, mut pressure) = self.measure();
        if pressure == Pressure::None {
            self.looks.store(0, Ordering::Relaxed);
        } else if self.looks.fetch_add(1, Ordering::Relaxed) % TRIM_LOOKS == 1 {
            give_back();
            (resident, pressure) = self.measure();
        }
        self.resident.store(resident, Ordering::Relaxed);
        let before = self.pressure.swap(pressure as u8, Ordering::Relaxed);
        if before != pressure as u8 {
            tracing::warn!(?pressure, resident, "memory pressure changed");
        }
    }

    fn measure(&self) -> (u64, Pressure) {
        let resident = resident();
        let limit = self.limit();
        (
            resident,
            limit.map_or(Pressure::None, |limit| Pressure::of(resident, limit)),
        )
    }

    /// The pressure at the last look.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        match self.pressure.load(Ordering::Relaxed) {
            0 => Pressure::None,
            1 => Pressure::High,
            _ => Pressure::Critical,
        }
    }

    /// Whether a descriptor of that number leaves room: the kernel gives the lowest one that is free, so its number
    /// tells how many are in use.
    #[must_use]
    pub fn admits(&self, descriptor: i32) -> bool {
        descriptor < self.most_descriptors
    }
}

/// Gives the system what was freed. The allocator keeps it wherever something younger is still in use, so that a crowd
/// that has left would count for good, and the proxy refuse everybody because of it. Whoever allocates waits meanwhile.
pub fn give_back() {
    #[expect(unsafe_code, reason = "there is no safe wrapper of malloc_trim")]
    // SAFETY: it takes no pointer, and locks out the allocator's other users itself.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Unmaps what was executed so far of the program. Most of it only ever starts the proxy and is not needed again; what is
/// comes back from the page cache as it is executed.
pub fn forget_executed() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in maps.lines().filter_map(executable) {
        #[expect(unsafe_code, reason = "no safe wrapper takes a range of addresses")]
        // SAFETY: the range is mapped from a file, executable and not writable, so that no page of it differs from the file:
        // the next access reads the same bytes again.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of an executable mapping of a file that is never written, from a line of `/proc/self/maps`.
fn executable(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_executable = words.next()? == "r-xp" && words.nth(3)?.starts_with('/');
    let number = |text| usize::from_str_radix(text, 16).ok();
    let start = number(start)?;
    is_executable.then_some((start, number(end)?.checked_sub(start)?))
}

fn effective(stated: u64, began: u64, now: u64) -> Option<u64> {
    let limit = if now != began || stated == 0 { now } else { stated };
    (limit > 0).then_some(limit)
}

/// Limit of the memory cgroup, in bytes; version 2, else 1.
fn cgroup_limit() -> Option<u64> {
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok())
    .and_then(|text| cgroup_number(&text))
}

/// `max`, or a number near the largest one, is no limit.
fn cgroup_number(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 60)
}

/// 95 % of the soft limit.
fn most_descriptors() -> i32 {
    use nix::sys::resource::{Resource, getrlimit};
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    i32::try_from(soft.min(1 << 30) * 95 / 100).unwrap_or(i32::MAX)
}

/// Resident memory of the process in bytes, from /proc.
#[must_use]
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map_or(0, |pages| pages * 4096)
}

/// Under pressure memory is given back at the second look and at each so many after it: those who allocate wait meanwhile.
const TRIM_LOOKS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LIFE-083
    #[test]
    fn pressure_begins_at_90_and_95_percent() {
        let mib = 1 << 20;
        assert_eq!(Pressure::of(400 * mib, 512 * mib), Pressure::None);
        assert_eq!(Pressure::of(461 * mib, 512 * mib), Pressure::High);
        assert_eq!(Pressure::of(487 * mib, 512 * mib), Pressure::Critical);
    }

    #[test]
    fn executable_mappings_of_files_are_told_from_others() {
        for (line, expected) in [
            (
                "1000-3000 r-xp 00001000 fe:00 42   /usr/local/bin/weft-proxy",
                Some((0x1000, 0x2000)),
            ),
            ("1000-3000 rwxp 00001000 fe:00 42   /usr/local/bin/weft-proxy", None),
            ("1000-3000 r--p 00001000 fe:00 42   /usr/local/bin/weft-proxy", None),
            ("7ffc0000-7ffc2000 r-xp 00000000 00:00 0   [vdso]", None),
            ("1000-3000 r-xp 00000000 00:00 0 ", None),
            ("3000-1000 r-xp 00001000 fe:00 42   /usr/local/bin/weft-proxy", None),
            ("", None),
        ] {
            assert_eq!(executable(line), expected, "{line}");
        }
    }

    // spec: LIFE-086
    #[test]
    fn a_cgroup_that_changes_is_followed() {
        assert_eq!(effective(512, 0, 0), Some(512));
        assert_eq!(effective(512, 512, 1024), Some(1024));
        assert_eq!(effective(512, 512, 256), Some(256));
        assert_eq!(effective(0, 0, 0), None);
        assert_eq!(effective(0, 256, 256), Some(256));
        assert_eq!(cgroup_number("max\n"), None);
        assert_eq!(cgroup_number("536870912\n"), Some(512 << 20));
        assert_eq!(cgroup_number("9223372036854771712\n"), None);
    }
}
