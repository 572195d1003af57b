%%% Who attacks the listeners of the tests: a program of its own, built from
%%% native/mesh/examples/attacker. It does one bounded thing and then holds on to what it has, until
%%% it is called off or the process that has started it ends.
-module(mesh_attacker).

-export([start/3, start_at/3, outcome/1, call_off/1, attack/3]).

-export_type([attacker/0]).

-opaque attacker() :: port().

%% The attacks end by themselves long before.
-define(ATTACK_MS, 120_000).

%% Begins. `Args' are those of the program, as strings.
start(Listener, Attack, Args) ->
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    start_at(Port, Attack, Args).

start_at(Port, Attack, Args) ->
    All = ["--port", integer_to_list(Port) | Args] ++ [atom_to_list(Attack)],
    Options = [{args, All}, {line, 10_000}, binary, exit_status, use_stdio],
    open_port({spawn_executable, mesh_program:attacker()}, Options).

%% What became of the attack, once it is over; what it holds, it still holds.
outcome(Attacker) ->
    receive
        {Attacker, {data, {eol, Line}}} ->
            {ok, Tokens, _} = erl_scan:string(binary_to_list(Line)),
            {ok, {attacked, Outcome}} = erl_parse:parse_term(Tokens),
            Outcome;
        {Attacker, {exit_status, Status}} ->
            error({attacker_exited, Status})
    after ?ATTACK_MS ->
        error(attack_never_ends)
    end.

call_off(Attacker) ->
    true = port_close(Attacker),
    ok.

%% All of it, at a listener or a port.
attack(Port, Attack, Args) when is_integer(Port) ->
    finish(start_at(Port, Attack, Args));
attack(Listener, Attack, Args) ->
    finish(start(Listener, Attack, Args)).

finish(Attacker) ->
    Outcome = outcome(Attacker),
    ok = call_off(Attacker),
    Outcome.
