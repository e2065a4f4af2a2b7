//! The programs that the tests and the lab run: Debian's packages, or a list of what is missing elsewhere.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// A package of Debian and the programs in it that are used here.
const WANTED: [(&str, &[&str]); 13] = [
    ("bpftool", &["bpftool"]),
    ("conntrack", &["conntrack"]),
    ("curl", &["curl"]),
    ("ethtool", &["ethtool"]),
    ("iperf3", &["iperf3"]),
    ("iproute2", &["ip", "tc"]),
    ("iputils-ping", &["ping"]),
    ("nftables", &["nft"]),
    ("nginx-light", &["nginx"]),
    ("procps", &["ps", "sysctl"]),
    ("prometheus", &["promtool"]),
    ("tcpdump", &["tcpdump"]),
    ("util-linux", &["nsenter", "unshare"]),
];

/// Where Debian keeps programs for root, which the PATH of others lacks.
const ROOT_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Installs its arguments, without starting a service: the helpers that would are covered, for this process and its
/// children alone, by a program that does nothing. A stale list is refreshed; a source that cannot be reached is no
/// reason to stop as long as the packages come from another.
const INSTALL: &str = r#"
export DEBIAN_FRONTEND=noninteractive
for helper in /usr/sbin/invoke-rc.d /usr/bin/deb-systemd-invoke; do
    if [ -e "$helper" ]; then mount --bind /bin/true "$helper"; fi
done
apt-get -q update || echo "setup: some of apt's sources cannot be reached" >&2
exec apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
"#;

/// What is missing on this machine.
pub(super) struct Packages {
    missing: Vec<&'static str>,
}

impl Packages {
    /// Looks at dpkg's database where there is one, else at PATH.
    ///
    /// # Errors
    /// When dpkg-query is there but cannot be run.
    pub(super) fn look() -> Result<Self> {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
        query.args(WANTED.map(|(package, _)| package)).stdin(Stdio::null());
        // It fails when it does not know one of the names, and lists the others all the same.
        let known = match query.output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).context("dpkg-query cannot be run"),
        };
        Ok(Self { missing: missing(&known, on_path) })
    }

    /// Whether everything is there.
    pub(super) fn complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        let names = WANTED.iter().flat_map(|(_, programs)| *programs).copied();
        names.collect::<Vec<_>>().join(" ")
    }

    /// Installs what is missing, by sudo where the caller is not root.
    ///
    /// # Errors
    /// When this is not Debian or apt fails; names the packages and how to install them.
    pub(super) fn install(&self) -> Result<()> {
        let packages = self.missing.join(" ");
        eprintln!("setup: programs of the tests and the lab are missing; Debian's packages: {packages}");
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!("missing programs: {}. Install them with this system's own tools", self.missing_programs());
        }
        if !workspace::is_root() {
            eprintln!("setup: installing packages needs root, by sudo");
        }
        let mut install = process::as_root("unshare");
        install.args(["--mount", "sh", "-ec", INSTALL, "setup"]).args(&self.missing);
        install.stdin(Stdio::null()).stdout(io::stderr());
        process::run(&mut install).with_context(|| {
            format!(
                "packages could not be installed: see above, or as root: \
                 apt-get update && apt-get install --no-install-recommends {packages}"
            )
        })?;
        let left = Self::look()?;
        if !left.complete() {
            bail!("apt-get ended well, yet these are missing: {}", left.missing.join(" "));
        }
        if Path::new("/run/systemd/system").exists() {
            eprintln!(
                "setup: no service was started; \
                 `systemctl disable nginx prometheus iperf3` keeps them from the next boot"
            );
        }
        Ok(())
    }

    fn missing_programs(&self) -> String {
        let missing = WANTED.iter().filter(|(package, _)| self.missing.contains(package));
        missing.flat_map(|(_, programs)| *programs).copied().collect::<Vec<_>>().join(" ")
    }
}

/// The packages to install, by what dpkg knows (`package status` a line). One that is half installed is wanted; one
/// that dpkg does not have may be there in another form (nginx-full, a bpftool of the kernel's own).
fn missing(known: &str, on_path: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let statuses: HashMap<&str, &str> = known.lines().filter_map(|line| line.split_once(' ')).collect();
    let is_missing = |package: &str, programs: &[&str]| match statuses.get(package) {
        Some(&"installed") => false,
        None | Some(&("not-installed" | "config-files")) => !programs.iter().all(|program| on_path(program)),
        Some(_) => true,
    };
    WANTED.iter().filter(|(package, programs)| is_missing(package, programs)).map(|(package, _)| *package).collect()
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |folder: &Path| fs::metadata(folder.join(program)).is_ok_and(|file| file.is_file());
    env::split_paths(&path).chain(env::split_paths(ROOT_PATH)).any(|folder| is_there(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_installed() -> String {
        WANTED.map(|(package, _)| format!("{package} installed\n")).concat()
    }

    #[test]
    fn nothing_is_missing_where_all_is_installed() {
        assert!(missing(&all_installed(), |_| false).is_empty());
    }

    #[test]
    fn what_dpkg_left_half_done_is_missing() {
        let known = all_installed().replace("curl installed", "curl half-configured");
        assert_eq!(missing(&known, |_| true), ["curl"]);
    }

    #[test]
    fn a_program_from_elsewhere_will_do() {
        let known = all_installed().replace("nginx-light installed\n", "").replace("iproute2 i", "iproute2 not-i");
        assert!(missing(&known, |_| true).is_empty());
        assert_eq!(missing(&known, |program| program != "tc"), ["iproute2"]);
        assert_eq!(missing(&known, |_| false), ["iproute2", "nginx-light"]);
    }

    #[test]
    fn programs_are_found_on_path() {
        assert!(on_path("sh"));
        assert!(!on_path("no-program-has-this-name"));
    }
}
