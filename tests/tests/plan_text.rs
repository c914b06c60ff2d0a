//! The plan's text parses back to the same plan, for a whole model.

use hadal::{Input, Options, compile};
use hadal_ir::Module;
use hadal_ir::plan::Program;
use hadal_ir::text::parse_program;

#[test]
fn a_whole_plan_reads_back() {
    let input = Input::demo().expect("the demo is embedded");
    let compiled = compile(&input, &Options::default()).expect("the demo compiles");
    let parsed = parse_program(&compiled.program.to_string()).expect("a program's own text");
    assert_eq!(parsed, Program { module: Module::default(), ..compiled.program });
}
