//! One package of another Debian suite, by apt with a configuration of its own: the mirror and its keyring are the
//! system's, the lists and the cache are not, so that nothing of the system's changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Suites that a Debian archive is known by.
const DEBIAN_SUITES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// One of the system's sources of binary packages.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    /// A keyring's path, or a key block with its line breaks and indentation as deb822 has them.
    signed_by: Option<String>,
}

/// Downloads a package into `work`, which is made, and says where it is. Its signature and hash are apt's to check.
///
/// # Errors
/// When apt is not here, no Debian mirror is configured, or the mirror does not have this version.
pub(super) fn download(work: &Path, suite: &str, package: &str, version: &str) -> Result<PathBuf> {
    let sources = system_sources(Path::new("/etc/apt"))?;
    let mirror = debian_mirror(&sources).context("no Debian archive among the sources in /etc/apt")?;
    for folder in ["lists/partial", "cache/archives/partial", "package"] {
        let path = work.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    }
    write(&work.join("mirror.sources"), &stanza(mirror, suite))?;
    let transport = process::output(Command::new("apt-config").arg("dump"))?;
    let configuration = work.join("apt.conf");
    write(&configuration, &private_configuration(work, &transport))?;

    eprintln!("setup: fetching {package} {version} from {suite} of {}", mirror.uri);
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &configuration).env("LC_ALL", "C").arg("-q").current_dir(work.join("package"));
        command
    };
    process::output(apt().arg("update"))?;
    process::output(apt().arg("download").arg(format!("{package}={version}")))?;
    downloaded(&work.join("package"))
}

fn downloaded(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("{} cannot be read", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get left no package in {}", folder.display())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// The source that `mirror` has for another suite.
fn stanza(mirror: &Source, suite: &str) -> String {
    let mut text = format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n", mirror.uri);
    if let Some(key) = &mirror.signed_by {
        text.push_str(&format!("Signed-By:{}{key}\n", if key.starts_with('\n') { "" } else { " " }));
    }
    text
}

/// apt's configuration: the system's own way to the network (`dump` is what `apt-config dump` prints), none of its
/// hooks, and folders under `work`.
fn private_configuration(work: &Path, dump: &str) -> String {
    let transport = dump.lines().filter(|line| {
        // Further indices (contents, icons) are of no use here, and large.
        line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets")
    });
    let mut text: String = transport.map(|line| format!("{line}\n")).collect();
    let work = work.display();
    text.push_str(&format!(
        "Acquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\n\
         Dir::Etc::Main \"/dev/null\";\n\
         Dir::Etc::Parts \"/dev/null\";\n\
         Dir::Etc::SourceList \"{work}/mirror.sources\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\n\
         Dir::State::Lists \"{work}/lists\";\n\
         Dir::Cache \"{work}/cache\";\n"
    ));
    text
}

/// The sources that apt itself would read.
fn system_sources(folder: &Path) -> Result<Vec<Source>> {
    let mut files = vec![folder.join("sources.list")];
    if let Ok(entries) = fs::read_dir(folder.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.exists()) {
        let parse = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => parse_one_line,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        sources.extend(parse(&text));
    }
    Ok(sources)
}

/// The archive that serves the whole of Debian: it has the suites of other releases as well. Other people's
/// repositories name their suites after Debian's too, so one that is signed or named like Debian's comes first.
fn debian_mirror(sources: &[Source]) -> Option<&Source> {
    let mut candidates: Vec<&Source> = sources
        .iter()
        .filter(|source| {
            source.components.iter().any(|component| component == "main")
                && source.suites.iter().any(|suite| DEBIAN_SUITES.contains(&suite.as_str()))
                && !source.uri.contains("security")
        })
        .collect();
    candidates.sort_by_key(|source| {
        let signed = source.signed_by.as_ref().is_some_and(|key| key.contains("debian-archive"));
        !(signed || source.uri.trim_end_matches('/').ends_with("/debian"))
    });
    candidates.first().copied()
}

/// Reads `deb [options] uri suite component…` lines (sources.list(5)).
fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default();
    let rest = line.trim_start().strip_prefix("deb")?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uri: words.next()?,
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.map(str::to_owned),
    })
}

/// Reads stanzas of `Field: value` (sources.list(5), deb822 style).
fn parse_deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).filter_map(deb822_stanza).collect()
}

fn deb822_stanza(lines: &[&str]) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push('\n');
            value.push_str(line);
        } else {
            let (name, value) = line.split_once(':')?;
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let words = |name: &str| field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let off = field("enabled").is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "no" | "false" | "0"));
    if off || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    Some(Source {
        uri: words("uris").into_iter().next()?,
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").filter(|value| !value.is_empty()).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example/debian
Suites: sid
Components: main
Enabled: no

Types: deb-src
URIs: http://mirror.example/debian
Suites: sid
Components: main
";

    #[test]
    fn deb822_sources_are_read() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2, "{sources:?}");
        assert_eq!(
            sources[0],
            Source {
                uri: "http://mirror.example/debian".to_owned(),
                suites: vec!["bookworm".to_owned(), "bookworm-updates".to_owned()],
                components: vec!["main".to_owned(), "contrib".to_owned()],
                signed_by: Some("/usr/share/keyrings/debian-archive-keyring.gpg".to_owned()),
            }
        );
        assert_eq!(sources[1].signed_by, None);
    }

    #[test]
    fn a_key_in_the_source_itself_is_kept_whole() {
        let text =
            "Types: deb\nURIs: http://m/debian\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN\n .\n mQIN\n";
        let sources = parse_deb822(text);
        let stanza = stanza(&sources[0], "trixie-backports");
        assert!(stanza.ends_with("Components: main\nSigned-By:\n -----BEGIN\n .\n mQIN\n"), "{stanza}");
        assert_eq!(parse_deb822(&stanza)[0].signed_by, sources[0].signed_by);
    }

    #[test]
    fn one_line_sources_are_read() {
        let text = "# deb http://off.example/debian bookworm main\n\
                    deb-src http://mirror.example/debian bookworm main\n\
                    deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/debian bookworm main contrib # why\n\
                    deb\thttp://other.example/tool stable main\n\
                    deb http://broken.example\n";
        let sources = parse_one_line(text);
        assert_eq!(sources.len(), 2, "{sources:?}");
        assert_eq!(sources[0].uri, "http://mirror.example/debian");
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(sources[1].signed_by, None);
    }

    #[test]
    fn the_mirror_is_the_one_with_a_debian_release() {
        let text = "deb http://sec.example/debian-security bookworm main\n\
                    deb http://tool.example/repo stable main\n\
                    deb http://mirror.example/debian bookworm contrib\n\
                    deb http://mirror.example/debian bookworm main\n";
        let sources = parse_one_line(text);
        assert_eq!(debian_mirror(&sources), Some(&sources[3]));
        assert_eq!(debian_mirror(&sources[..3]), Some(&sources[1]));
        assert_eq!(debian_mirror(&sources[..1]), None);
    }

    #[test]
    fn the_configuration_has_the_systems_transport_and_none_of_its_hooks() {
        let dump = "APT::Update::Post-Invoke:: \"rm -rf /x\";\n\
                    Acquire::http::Proxy \"http://proxy.example:3128\";\n\
                    Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\n\
                    Dir::Cache \"var/cache/apt\";\n";
        let text = private_configuration(Path::new("/some/place"), dump);
        assert!(text.starts_with("Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::Languages"), "{text}");
        assert!(text.contains("Dir::State::Lists \"/some/place/lists\";"), "{text}");
        assert!(!text.contains("Post-Invoke") && !text.contains("DEP-11") && !text.contains("var/cache"), "{text}");
    }
}
