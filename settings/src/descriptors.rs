//! How many files and connections a process may have open.
//!
//! A shell. Systems allow a process few by default, for the sake of programs that count them in 1024 bits, and more on demand.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process have as many as it may, and says how many that are; nothing where there is no bound.
pub fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        // Some systems name a bound that they do not keep.
        Err(_) => limit.current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_raised_is_allowed() {
        let raised = raise();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, raised);
        assert!(now.maximum.is_none() || now.current <= now.maximum);
        assert_eq!(raise(), raised, "once more changes nothing");
    }
}
