%%% Terms of every type at every exported function: `badarg' or a documented error, never a crash.
%%% The calls are made in another VM, so that a crash is a failed test. TERM_FUZZ_CALLS sets how
%%% many, LOAD_SEED repeats those of a run that failed.
-module(term_fuzz_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2]).
-export([
    every_exported_function_is_called/1,
    a_time_that_is_none_asks_for_nothing/1,
    a_stream_that_cannot_be_handed_over_goes_on/1,
    a_certificate_file_that_never_ends_is_refused/1,
    a_dial_ends_with_its_caller/1,
    no_term_crashes_a_function_the_server_or_the_vm/1
]).

-define(CALLS, "1500").
-define(CALLS_PER_ROUND, 64).
%% Servers that are started between stopping ours and starting it again, once in so many rounds.
-define(STARTS, 100).
-define(ROUNDS_PER_STARTS, 10).
%% Calls that went wrong of which the log tells.
-define(SHOWN, 60).
-define(CALL_MS, 60_000).
%% Atoms of modules that are loaded on the way. Ours make none of what they are given.
-define(ATOMS_OF_CODE, 500).
%% Tasks of the other VM at rest. It has two sockets of outgoing connections, the pool's and that of
%% processes' own: each has a task that drives it, and one that reads its errors.
-define(RESTING_TASKS, 4).
%% Less than any deadline or idle time of a dial that goes on.
-define(SOON_MS, 20_000).
%% Less than any idle time. A handshake that never ends is given up after ten seconds; and what has
%% been closed is kept for three probe timeouts, three seconds where no round trip was measured.
-define(REST_MS, 30_000).

suite() -> [{timetrap, {minutes, 5}}].

all() ->
    [
        every_exported_function_is_called,
        a_time_that_is_none_asks_for_nothing,
        a_stream_that_cannot_be_handed_over_goes_on,
        a_certificate_file_that_never_ends_is_refused,
        a_dial_ends_with_its_caller,
        no_term_crashes_a_function_the_server_or_the_vm
    ].

init_per_suite(Config) ->
    Base = filename:join(proplists:get_value(priv_dir, Config), "server"),
    [{files, quic_certs:self_signed(Base)} | quic_ct:certificates(Config)].

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

every_exported_function_is_called(_Config) ->
    %% A function that is added later must not be left out.
    Functions = mesh_fuzz:functions(),
    Called = [{Module, Function, length(Kinds)} || {Module, Function, Kinds} <- Functions],
    Modules = lists:usort([Module || {Module, _, _} <- Called]),
    Exported = [
        {Module, Function, Arity}
     || Module <- Modules,
        {Function, Arity} <- Module:module_info(exports),
        not is_callback(Module, Function)
    ],
    ?assertEqual([], Exported -- Called),
    ?assertEqual([], Called -- Exported).

a_time_that_is_none_asks_for_nothing(_Config) ->
    %% A request that nobody waits for any more would swallow what comes for the next one.
    Listener = quic_ct:listen(),
    Times = [-1, 1.0, 1 bsl 32, never, <<"5">>],
    [?assertError(function_clause, macula_quic:accept(Listener, Time)) || Time <- Times],
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    [?assertError(function_clause, macula_quic:accept_stream(Server, Time)) || Time <- Times],
    {Near, Far} = quic_ct:streams(Client, Server),
    [?assertError(function_clause, macula_quic:recv(Far, Time)) || Time <- Times],
    ok = macula_quic:send(Near, <<"text">>),
    ?assertEqual({ok, <<"text">>}, macula_quic:recv(Far, ?CALL_MS)).

a_stream_that_cannot_be_handed_over_goes_on(_Config) ->
    %% A handle cannot go to another node; whoever tries must not lose its stream by that.
    {Near, Far} = quic_ct:raw_streams(),
    ok = macula_quic:setopt(Far, active, true),
    [
        ?assertError(function_clause, macula_quic:controlling_process(Far, Pid))
     || Pid <- [mesh_terms:remote_pid(), me, make_ref()]
    ],
    ok = macula_quic:send(Near, <<"text">>),
    ?assertMatch({<<"text">>, _}, quic_ct:next(Far)).

a_certificate_file_that_never_ends_is_refused(_Config) ->
    %% A path may name a device. Reading it to its end would take all memory there is.
    Endless = "/dev/zero",
    Refused = {error, {bad_certificate, list_to_binary(Endless), efbig}},
    With = fun(Key) -> lists:keystore(Key, 1, quic_ct:server_options(), {Key, Endless}) end,
    [?assertEqual(Refused, macula_quic:listen(0, With(Key))) || Key <- [certfile, keyfile]],
    Verify = [{verify, peer}, {cacertfile, Endless}],
    ?assertEqual(Refused, macula_quic:connect("localhost", 4433, Verify, 0)).

a_dial_ends_with_its_caller(Config) ->
    %% A caller may give any deadline, and die long before it.
    {ok, Socket} = gen_udp:open(0, [{ip, {127, 0, 0, 1}}, {active, false}]),
    {ok, Port} = inet:port(Socket),
    mesh_vm:with(fun(Vm) ->
        ok = call(Vm, start, [proplists:get_value(files, Config)]),
        _ = at_rest(Vm, undefined),
        ok = call(Vm, begin_dial, [Port, ?CALL_MS]),
        {ok, _} = gen_udp:recv(Socket, 0, ?CALL_MS),
        ok = call(Vm, kill_caller, []),
        Look = fun() -> is_at_rest(call(Vm, figures, []), undefined) end,
        mesh_wait:eventually(true, Look, ?SOON_MS)
    end),
    ok = gen_udp:close(Socket).

no_term_crashes_a_function_the_server_or_the_vm(Config) ->
    %% The library shares the node's fate: a term that ends the VM ends everything on it.
    Calls = list_to_integer(os:getenv("TERM_FUZZ_CALLS", ?CALLS)),
    _ = ct:timetrap({seconds, 120 + Calls div 50}),
    Seed = mesh_load:seed(),
    Rounds = Calls div ?CALLS_PER_ROUND + 1,
    Starts = lists:seq(1, (Rounds div ?ROUNDS_PER_STARTS + 1) * ?STARTS, ?STARTS),
    mesh_vm:with(fun(Vm) ->
        ok = call(Vm, start, [proplists:get_value(files, Config)]),
        %% What is loaded and made on first use is there after this.
        First = round(Vm, Seed, 0),
        Before = at_rest(Vm, undefined),
        Atoms = call(Vm, atoms, []),
        Footprint = mesh_vm:footprint(Vm),
        Rest = [round(Vm, Seed, Round) || Round <- lists:seq(1, Rounds)],
        {Started, WrongStarts} = lists:unzip([
            call(Vm, starts, [Seed, Number, ?STARTS])
         || Number <- Starts
        ]),
        ct:pal("of each ~b servers, these have started: ~w", [?STARTS, Started]),
        ?assert(lists:sum(Started) > 0),
        ?assert(lists:min(Started) < ?STARTS),
        Wrong = lists:append([First | WrongStarts ++ Rest]),
        [ct:pal("~p", [Each]) || Each <- lists:sublist(Wrong, ?SHOWN)],
        ?assertEqual([], lists:sublist(Wrong, 1)),
        ?assertEqual(Before, at_rest(Vm, Before)),
        ?assert(call(Vm, atoms, []) - Atoms < ?ATOMS_OF_CODE),
        Grown = fun() -> mesh_vm:grown(mesh_vm:footprint(Vm), Footprint) end,
        mesh_wait:eventually(#{}, Grown, ?REST_MS)
    end).

%%% Internal

is_callback(macula_gateway_mesh, Function) ->
    Callbacks = [init, handle_call, handle_cast, handle_info, terminate, code_change],
    lists:member(Function, [module_info | Callbacks]);
is_callback(_Module, Function) ->
    Function =:= module_info.

%% When the VM dies, the error names the round.
round(Vm, Seed, Round) ->
    try
        call(Vm, round, [Seed, Round, mesh_fuzz:functions()])
    catch
        Class:Reason -> error({vm_died, {seed, Seed}, {round, Round}, Class, Reason})
    end.

%% The figures once nothing is left of what was made: as `Before', if that is known.
at_rest(Vm, Before) ->
    mesh_wait:eventually(true, fun() -> is_at_rest(call(Vm, figures, []), Before) end, ?REST_MS),
    call(Vm, figures, []).

is_at_rest(#{runtime_tasks := ?RESTING_TASKS, panics := 0}, undefined) -> true;
is_at_rest(Before, Before) -> true;
is_at_rest(Other, Before) -> {Other, instead_of, Before}.

call(Vm, Function, Arguments) -> peer:call(Vm, mesh_fuzz, Function, Arguments, ?CALL_MS).
