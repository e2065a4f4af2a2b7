//! The `beeline` binary.
fn main() {
    let sizes = lb_userspace::config::MapSizes { services: 10000, backends: 100000, slots: 8388608, flows: 1000 };
    let mut o = lb_userspace::datapath::object::load(&sizes, None, std::env::args().nth(1).is_some()).unwrap();
    for p in lb_userspace::datapath::object::Program::ALL {
        match lb_userspace::datapath::object::program(&mut o, p) {
            Ok(x) => {
                let i = x.info().unwrap();
                println!(
                    "{:?} {:?} {:?} xl {:?} jit {:?}",
                    p,
                    i.name_as_str(),
                    i.verified_instruction_count(),
                    i.size_translated(),
                    i.size_jitted()
                );
            }
            Err(e) => {
                let s = format!("{e:?}");
                println!("{p:?} {}", &s[s.len().saturating_sub(6000)..]);
            }
        }
    }
}
