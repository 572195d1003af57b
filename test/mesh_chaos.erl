%%% A storm over a pool in another VM: nodes of several kinds, the faults that befall them, made
%%% from a seed, and what must be true once it is over. The evidence is outside the pool: each node
%%% appends the number of each whole message to a file, which outlives it.
-module(mesh_chaos).

-export([with/2, act/2]).

-include_lib("stdlib/include/assert.hrl").

-define(POOL, macula_gateway_mesh).
-define(LIMIT, 4).
-define(CALLERS, 8).
-define(NAME, "storm.macula.test").
%% Between two strikes.
-define(PACE_MS, 250).
%% What a fault takes at least.
-define(LEAST_MS, 500).
-define(RELAYED, [relayed, shaky, listener]).
%% What a node's transport acknowledged so shortly before its end, its application may not have
%% read: it may be read behind something that was lost on the way. Time in which either end stood
%% still does not count. And who waits for it is told so much later at most, if the pool's VM stands
%% still then.
-define(GRACE_MS, 3_000).
-define(LATE_MS, 2_000).
%% Messages to each node after the storm, of which each has to be confirmed.
-define(REACHES, 5).
%% How often the server dies in an act of deaths.
-define(SERVER_DEATHS, 3).
%% How long the pool's VM stands still: longer than its patience with a silent peer, shorter than an
%% idle timeout.
-define(PATIENCE_MS, 1_000).
-define(LONG_MS, 1_500).
-define(SHORT_MS, 800).
%% How many descriptors a VM may have when it may.
-define(DESCRIPTORS, 1_024).
%% In a storm, callers take back what takes long; in the calm before it, nothing that is merely slow
%% may cost a message.
-define(CONFIRM_MS, 4_000).
-define(CALM_MS, 20_000).
%% What may be left of a storm in the VM's memory: libc's heap shrinks from its end alone, and what
%% is free within it stays, until a later storm uses it. With one heap for all threads that has been
%% 71 MB at most. It is gross leaks that show here, smaller ones in soak_SUITE.
-define(MEMORY_KIB, 128 * 1_024).
%% Acts from which on a trend of the VM's own memory is one. The resident memory has steps.
-define(ACTS, 8).
-define(ONE_HEAP, [{"MALLOC_ARENA_MAX", "1"}]).
-define(OPTIONS, #{
    max_mesh_connections => ?LIMIT,
    linger_ms => 500,
    connect_timeout_ms => 1_500,
    ack_timeout_ms => ?PATIENCE_MS,
    idle_timeout_ms => 2_500,
    keep_alive_interval_ms => 500,
    queue_max_messages => 500,
    send_watermark_bytes => 512 * 1_024,
    runtime_workers => 2
}).
%% The lower idle timeout of both ends holds: in a storm, the pool's.
-define(LISTENER, #{idle_timeout_ms => ?CALM_MS, keep_alive_interval_ms => 500}).

%%% The stage

%% Runs `Test(Chaos)' with a VM for the pool, and nodes around it. Names change in a mount namespace
%% of the VM's own, where this machine allows one.
with(Dir, Test) ->
    Hosts = filename:join(Dir, "hosts"),
    ok = name_is({127, 0, 0, 1}, Hosts),
    HasNames = os:cmd("unshare --mount true 2>&1 && echo yes") =:= "yes\n",
    HasNames orelse ct:pal("no mount namespaces here: names will not change"),
    Chaos = #{
        dir => Dir,
        hosts => Hosts,
        identity => quic_certs:self_signed(filename:join(Dir, "listener")),
        faults => faults(HasNames),
        number => 1,
        reached => #{},
        ends => [],
        unsent => [],
        struck => #{},
        stood => [],
        samples => [],
        limited => [],
        base => none,
        ports => #{},
        peers => #{},
        relays => #{}
    },
    mesh_vm:with(exec(HasNames, Hosts), fun(Vm) -> begin_test(Chaos, Vm, HasNames, Test) end).

begin_test(Chaos, Vm, HasNames, Test) ->
    try
        Final = Test(build(start_listener(Chaos#{vm => Vm}), HasNames)),
        assert_each_was_reached(Final),
        assert_each_struck(Final),
        assert_steady(lists:reverse(maps:get(samples, Final))),
        peer:stop(maps:get(listener, Final))
    after
        %% Peers, relays and the listener's VM end with this process.
        ok = mesh_program:signal("CONT", mesh_vm:os_pid(Vm))
    end.

%% In a namespace, the VM sees our file in place of the system's names.
exec(false, _Hosts) ->
    #{env => ?ONE_HEAP};
exec(true, Hosts) ->
    Script = "mount --bind \"$0\" /etc/hosts && exec erl \"$@\"",
    Unshare = os:find_executable("unshare"),
    #{env => ?ONE_HEAP, exec => {Unshare, ["--mount", "sh", "-c", Script, Hosts]}}.

%% Peers on their own, behind a relay, and behind a name that has two addresses in turn; and
%% the listener in a VM of its own, behind a relay, which alone speaks `macula-mesh/1'.
build(Chaos, HasNames) ->
    Nodes = [mortal, other, relayed, shaky] ++ [Name || HasNames, Name <- [named, named_too]],
    Peopled = lists:foldl(fun start_peer/2, Chaos, Nodes),
    #{ports := Ports} = Peopled,
    Relays = maps:from_list([
        {Node, mesh_relay:start(maps:get(Node, Ports), rand:uniform(1_000_000_000))}
     || Node <- ?RELAYED
    ]),
    Peopled#{relays := Relays}.

%% Who comes back has the identity of the one before.
start_listener(#{dir := Dir, identity := Identity, ports := Ports} = Chaos) ->
    Listener = mesh_vm:start(),
    Place =
        case Ports of
            #{listener := Former} -> Former;
            #{} -> free_port(Ports)
        end,
    Listen = [Place, Identity, log(Dir, listener), ?LISTENER],
    Port = mesh_vm:call(Listener, mesh_callers, listen, Listen),
    Begun = Chaos#{listener => Listener, ports := Ports#{listener => Port}},
    Begun#{listener_base => remains(Listener)}.

start_peer(Node, #{dir := Dir, peers := Peers, ports := Ports} = Chaos) ->
    Place =
        case {Node, Ports} of
            {_, #{Node := Port}} -> Port;
            {named_too, #{named := Port}} -> Port;
            {_, _} -> free_port(Ports)
        end,
    At = ["--port", integer_to_list(Place)],
    Ip = ["--address", inet:ntoa(ip(Node))],
    %% Each has another self-signed identity: who comes back is a stranger at the same address.
    Peer = mesh_peer:start(At ++ Ip ++ ["--log", log(Dir, Node), "--bidi-streams", "64"]),
    Chaos#{peers := Peers#{Node => Peer}, ports := Ports#{Node => mesh_peer:port(Peer)}}.

%% None that the kernel gives to who asks for any: while a node is away, nobody must get its port.
%% Which ones are free must not change the plan, so they are no part of it.
free_port(Ports) ->
    {Number, _} = rand:uniform_s(10_000, rand:seed_s(exsss)),
    Port = 20_000 + Number,
    IsFree = not lists:member(Port, maps:values(Ports)) andalso is_free(Port),
    if
        IsFree -> Port;
        true -> free_port(Ports)
    end.

is_free(Port) ->
    case gen_udp:open(Port) of
        {ok, Socket} -> gen_udp:close(Socket) =:= ok;
        {error, eaddrinuse} -> false
    end.

ip(named_too) -> {127, 0, 0, 2};
ip(_Node) -> {127, 0, 0, 1}.

log(Dir, Node) -> filename:join(Dir, atom_to_list(Node) ++ ".log").

%% Where callers send: node id and address.
targets(#{relays := Relays, ports := Ports}) ->
    Direct = [{id(Node), {{127, 0, 0, 1}, maps:get(Node, Ports)}} || Node <- [mortal, other]],
    Relayed = [{id(Node), mesh_relay:address(Relay)} || {Node, Relay} <- maps:to_list(Relays)],
    Named = [{id(named), {?NAME, Port}} || #{named := Port} <- [Ports]],
    Direct ++ Relayed ++ Named.

id(Node) -> atom_to_binary(Node).

%% In place and of one length: a look-up that found the file cut short would ask the name server.
name_is(Ip, Hosts) ->
    Text = io_lib:format("127.0.0.1 localhost\n~-15s ~s\n", [inet:ntoa(Ip), ?NAME]),
    {ok, File} = file:open(Hosts, [read, write]),
    ok = file:pwrite(File, 0, Text),
    file:close(File).

%%% A storm of `Ms', and the calm after it

%% `calm': no faults; `faults'; `deaths': the server is killed, too, and so the account is open;
%% `strangers': the pool wants the key of the listener, and so all others are strangers to it.
act({Kind, Ms}, #{vm := Vm, number := First} = Chaos) ->
    Targets = targets(Chaos),
    ok = mesh_vm:call(Vm, start_pool, [options(Kind, Chaos)]),
    How = #{keeps => true, confirm_ms => confirm_ms(Kind)},
    ok = mesh_vm:call(Vm, mesh_callers, start, [Targets, ?CALLERS, First, How]),
    Struck = restore(play(plan(Kind, Ms, Chaos), Chaos, now_ms())),
    Report = mesh_vm:call(Vm, mesh_callers, stop, []),
    mesh_load:eventually(0, fun() -> stat(Vm, outstanding_messages) end),
    assert_report(Kind, Vm, Report),
    Told = unsent(Report, Struck),
    assert_evidence(maps:get(confirmed, Report), Told),
    assert_floor(Kind, Report, fun() -> length(arrived_since(First, Told)) end),
    assert_arrivals(Kind, Report, Told),
    assert_strangers(Kind, Report, Told),
    Reached = assert_reachable(wanted(Kind, Targets), Told#{number := maps:get(next, Report)}),
    ok = mesh_vm:call(Vm, stop_pool, []),
    assert_listener_at_rest(Reached),
    assert_nothing_left(noted(Kind, Report, Reached)).

options(calm, _Chaos) ->
    Times = [linger_ms, connect_timeout_ms, ack_timeout_ms, idle_timeout_ms],
    maps:merge(?OPTIONS, maps:from_list([{Time, ?CALM_MS} || Time <- Times]));
options(strangers, #{dir := Dir}) ->
    Key = quic_certs:spki(filename:join(Dir, "listener.pem")),
    maps:put(verify, {spki_sha256, Key}, ?OPTIONS);
options(_Storm, _Chaos) ->
    ?OPTIONS.

wanted(strangers, Targets) -> [Target || {Node, _} = Target <- Targets, Node =:= id(listener)];
wanted(_Kind, Targets) -> Targets.

confirm_ms(calm) -> ?CALM_MS;
confirm_ms(_Storm) -> ?CONFIRM_MS.

%% What happens when, and as which fault it counts: each has an end, in time for the calm.
plan(calm, Ms, _Chaos) ->
    [{Ms, end_of_fault, nothing}];
plan(Kind, Ms, #{faults := Faults}) ->
    Times = lists:seq(?PACE_MS, Ms - ?PACE_MS, ?PACE_MS),
    Certain = [strikes(Fault, pick(Times), Ms) || Fault <- certain(Kind)],
    Strikes = [strikes(Fault, Time, Ms) || {Fault, Time} <- deal(faults(Kind, Faults), Times)],
    Plan = lists:keysort(1, [{Ms, end_of_fault, nothing} | lists:append(Certain ++ Strikes)]),
    ct:log("the plan: ~p", [Plan]),
    Plan.

%% One fault for each time. None comes again before all others have come.
deal(Faults, Times) ->
    Decks = [shuffled(Faults) || _ <- lists:seq(0, length(Times) div length(Faults))],
    lists:zip(lists:sublist(lists:append(Decks), length(Times)), Times).

shuffled(List) ->
    [Each || {_, Each} <- lists:sort([{rand:uniform(), Each} || Each <- List])].

%% What each act has, whatever else is dealt.
certain(Kind) when Kind =:= calm; Kind =:= strangers ->
    [];
certain(faults) ->
    [die_and_return, stand_still_for_long] ++
        [{kill_caller, Way} || Way <- [confirmed, connection, stream]];
certain(deaths) ->
    lists:duplicate(?SERVER_DEATHS, kill_server) ++ certain(faults).

%% The listener is there, with the key that it had, whatever befalls the strangers.
faults(strangers, _Faults) -> [die, {stand_still, node}, suspend, rebind];
faults(_Storm, Faults) -> Faults.

faults(HasNames) ->
    Lines = [
        #{loss => 150},
        #{delay => 20, jitter => 40},
        #{reorder => 200},
        #{duplicate => 200},
        #{corrupt => 200},
        #{mtu => 1_250}
    ],
    [die, rebind, certificate, suspend] ++
        [{stand_still, Who} || Who <- [node, listener]] ++
        [{no_descriptors, Who} || Who <- [pool, listener]] ++
        [{line, Faults} || Faults <- Lines] ++
        [{partition, Way} || Way <- [up, down, both]] ++
        [name || HasNames].

strikes(die, Time, Ms) ->
    dies(die, pick([mortal, other]), Time, Ms);
strikes(die_and_return, Time, Ms) ->
    dies(die_and_return, listener, Time, Ms);
strikes({stand_still, node} = Fault, Time, Ms) ->
    Node = pick([relayed, shaky]),
    [{Time, Fault, {stop, Node}}, {until(Time, Ms), end_of_fault, {continue, Node}}];
strikes({stand_still, listener} = Fault, Time, Ms) ->
    [{Time, Fault, {stop, listener, until(Time, Ms) - Time}}];
strikes({line, #{mtu := _} = Faults} = Fault, Time, Ms) ->
    have_lines(Fault, ?RELAYED, both, Faults, Time, Ms);
strikes({line, Faults} = Fault, Time, Ms) ->
    have_lines(Fault, ?RELAYED, pick([up, down, both]), Faults, Time, Ms);
strikes({partition, Way} = Fault, Time, Ms) ->
    have_lines(Fault, [pick(?RELAYED)], Way, #{blackout => true}, Time, Ms);
strikes(rebind, Time, _Ms) ->
    [{Time, rebind, {rebind, pick(?RELAYED)}}];
strikes(name, Time, _Ms) ->
    %% Nobody is at the last one.
    [{Time, name, {name, pick([{127, 0, 0, 1}, {127, 0, 0, 2}, {127, 0, 0, 3}])}}];
strikes({no_descriptors, Who} = Fault, Time, Ms) ->
    [{Time, Fault, {no_descriptors, Who}}, {until(Time, Ms), end_of_fault, {descriptors, Who}}];
strikes(suspend, Time, _Ms) ->
    [{Time, suspend, {suspend, rand:uniform(?SHORT_MS)}}];
strikes(stand_still_for_long, Time, _Ms) ->
    [{Time, stand_still_for_long, {suspend, ?LONG_MS}}];
strikes(Fault, Time, _Ms) ->
    [{Time, Fault, Fault}].

dies(Fault, Node, Time, Ms) ->
    [{Time, Fault, {kill, Node}}, {until(Time, Ms), end_of_fault, {revive, Node}}].

%% Its end leaves what else those lines have.
have_lines(Fault, Nodes, Way, Faults, Time, Ms) ->
    None = maps:map(fun(Name, _) -> maps:get(Name, #{blackout => false}, 0) end, Faults),
    Begin = {Time, Fault, {lines, Nodes, Way, Faults}},
    [Begin, {until(Time, Ms), end_of_fault, {lines, Nodes, Way, None}}].

until(Time, Ms) -> min(Time + ?LEAST_MS + rand:uniform(2_700), Ms + ?LEAST_MS).

play([], Chaos, _Start) ->
    Chaos;
play([{Time, Fault, Strike} | Plan], Chaos, Start) ->
    %% What takes long puts off the rest, or faults would end before they have begun.
    Begin = max(Start, now_ms() - Time),
    %% The plan's time is the claim: this is no wait for anything.
    timer:sleep(max(0, Begin + Time - now_ms())),
    play(Plan, counted(Fault, strike(Strike, Chaos)), Begin).

counted(end_of_fault, Chaos) ->
    Chaos;
counted(Fault, #{struck := Struck} = Chaos) ->
    Chaos#{struck := Struck#{Fault => maps:get(Fault, Struck, 0) + 1}}.

%% Who is dead when something is to befall him is revived for that, so that each strike strikes.
strike({kill, listener}, Chaos) ->
    #{listener := Listener, limited := Limited} = Alive = revived(listener, Chaos),
    ok = mesh_vm:kill(Listener),
    ended(listener, Alive#{listener := none, limited := Limited -- [listener]});
strike({kill, Node}, Chaos) ->
    #{peers := Peers} = Alive = revived(Node, Chaos),
    ok = mesh_peer:kill(maps:get(Node, Peers)),
    ended(Node, Alive#{peers := maps:remove(Node, Peers)});
strike({revive, Node}, Chaos) ->
    revived(Node, Chaos);
strike({stop, listener, Ms}, Chaos) ->
    %% By a process that nothing can keep from going on with it: what stands still does not end with
    %% who has started it.
    #{listener := Listener} = Alive = revived(listener, Chaos),
    OsPid = mesh_vm:os_pid(Listener),
    _ = spawn(fun() -> suspend(OsPid, Ms) end),
    stood(Ms, Alive);
strike({stop, Node}, #{peers := Peers} = Chaos) ->
    ok = mesh_peer:pause(maps:get(Node, Peers)),
    Chaos;
strike({continue, Node}, #{peers := Peers} = Chaos) ->
    ok = mesh_peer:resume(maps:get(Node, Peers)),
    Chaos;
strike({lines, Nodes, Way, Faults}, #{relays := Relays} = Chaos) ->
    [ok = mesh_relay:set(maps:get(Node, Relays), Way, Faults) || Node <- Nodes],
    Chaos;
strike({rebind, Node}, #{relays := Relays} = Chaos) ->
    _ = mesh_relay:rebind(maps:get(Node, Relays)),
    Chaos;
strike({name, Ip}, #{hosts := Hosts} = Chaos) ->
    ok = name_is(Ip, Hosts),
    Chaos;
strike(certificate, #{dir := Dir} = Chaos) ->
    #{listener := Listener} = Alive = revived(listener, Chaos),
    _ = quic_certs:self_signed(filename:join(Dir, "listener")),
    renewed(mesh_vm:call(Listener, mesh_callers, renew, []), Alive);
strike({kill_caller, Way}, #{vm := Vm} = Chaos) ->
    ok = mesh_vm:call(Vm, mesh_callers, kill, [Way]),
    Chaos;
strike(kill_server, #{vm := Vm} = Chaos) ->
    %% This goes with its figures.
    ?assertEqual(0, stat(Vm, panics)),
    ok = mesh_vm:call(Vm, kill_server, []),
    Chaos;
strike({no_descriptors, Who}, Chaos) ->
    {Vm, #{limited := Limited} = Alive} = who(Who, Chaos),
    #{fds := Descriptors} = mesh_vm:footprint(Vm),
    ok = mesh_vm:limit_descriptors(Vm, Descriptors),
    Alive#{limited := lists:usort([Who | Limited])};
strike({descriptors, Who}, Chaos) ->
    {Vm, #{limited := Limited} = Alive} = who(Who, Chaos),
    ok = mesh_vm:limit_descriptors(Vm, ?DESCRIPTORS),
    Alive#{limited := Limited -- [Who]};
strike({suspend, Ms}, #{vm := Vm} = Chaos) ->
    %% What a machine that sleeps looks like from within: the clocks go on. Nothing else strikes
    %% meanwhile, since a VM that stands still does not answer.
    ok = suspend(mesh_vm:os_pid(Vm), Ms),
    stood(Ms, Chaos);
strike(nothing, Chaos) ->
    Chaos.

%% Ends every fault; the plan has done so too, but for those that were cut short.
restore(#{peers := Peers, relays := Relays} = Chaos) ->
    lists:foreach(fun mesh_relay:clear/1, maps:values(Relays)),
    lists:foreach(fun mesh_peer:resume/1, maps:values(Peers)),
    Revivals = [{revive, Node} || Node <- [mortal, other, listener]],
    Limits = [{descriptors, Who} || Who <- [pool, listener]],
    lists:foldl(fun strike/2, Chaos, [{name, {127, 0, 0, 1}} | Revivals ++ Limits]).

revived(listener, #{listener := none} = Chaos) -> start_listener(Chaos);
revived(Node, #{peers := Peers} = Chaos) when Node =:= listener; is_map_key(Node, Peers) -> Chaos;
revived(Node, Chaos) -> start_peer(Node, Chaos).

who(pool, #{vm := Vm} = Chaos) ->
    {Vm, Chaos};
who(listener, Chaos) ->
    #{listener := Listener} = Alive = revived(listener, Chaos),
    {Listener, Alive}.

%% Where no file can be opened, the former certificate stays until one can.
renewed(ok, Chaos) ->
    Chaos;
renewed({error, {bad_certificate, _, emfile}}, #{limited := Limited} = Chaos) ->
    ?assert(lists:member(listener, Limited)),
    #{listener := Listener} = Free = strike({descriptors, listener}, Chaos),
    ?assertEqual(ok, mesh_vm:call(Listener, mesh_callers, renew, [])),
    Free.

ended(Node, #{ends := Ends} = Chaos) ->
    Chaos#{ends := [{id(Node), erlang:system_time(millisecond)} | Ends]}.

stood(Ms, #{stood := Stood} = Chaos) ->
    Chaos#{stood := [{erlang:system_time(millisecond), Ms} | Stood]}.

suspend(OsPid, Ms) ->
    ok = mesh_program:signal("STOP", OsPid),
    timer:sleep(Ms),
    mesh_program:signal("CONT", OsPid).

%%% What must be true

assert_report(Kind, Vm, #{largest := Largest, ends := Ends} = Report) ->
    ?assertEqual([normal], Ends),
    ?assert(Largest =< ?LIMIT),
    mesh_load:eventually(true, fun() ->
        {ok, Stats} = mesh_vm:call(Vm, get_stats, [?POOL]),
        is_accounted(Kind, Report, Stats) orelse {Stats, maps:remove(confirmed, Report)}
    end),
    ?assertEqual(0, stat(Vm, panics)).

%% Of a server that was killed nobody knows the figures. In the calm, all is delivered.
is_accounted(deaths, _Report, _Stats) ->
    true;
is_accounted(calm, #{given := Given, refused := Refused}, Stats) ->
    #{messages_delivered := Delivered} = Stats,
    {Given, Given, []} =:= {Delivered, accounted(Stats), Refused};
is_accounted(_Storm, #{given := Given, uncertain := Uncertain, confirmed := Confirmed}, Stats) ->
    #{messages_delivered := Delivered} = Stats,
    abs(accounted(Stats) - Given) =< Uncertain andalso Delivered >= length(Confirmed).

accounted(Stats) ->
    #{
        messages_delivered := Delivered,
        messages_dropped := Dropped,
        messages_unconfirmed := Unconfirmed
    } = Stats,
    Delivered + lists:sum(maps:values(Dropped)) + Unconfirmed.

%% A pool that refuses everything breaks no promise but these. In the calm, all arrives.
assert_floor(Kind, Report, Arrived) ->
    #{given := Given, confirmed := Confirmed, refused := Refused, killed := Killed} = Report,
    ct:pal("~p: ~b given, ~b confirmed, ~b arrived; refused: ~p; callers died in: ~p", [
        Kind, Given, length(Confirmed), Arrived(), Refused, Killed
    ]),
    ?assert(length(Confirmed) > 0),
    ?assert(Arrived() > 0),
    ?assertEqual([Way || {kill_caller, Way} <- certain(Kind)], lists:sort(Killed)),
    Kind =:= calm andalso mesh_load:eventually(Given, Arrived).

%% What was delivered arrived, but for what a node that died may have taken along; and of the others
%% none arrived, but for those of which that is not known.
assert_arrivals(Kind, Report, #{vm := Vm, number := First} = Chaos) when
    Kind =:= faults; Kind =:= strangers
->
    {ok, Stats} = mesh_vm:call(Vm, get_stats, [?POOL]),
    #{messages_delivered := Delivered, messages_unconfirmed := Unconfirmed} = Stats,
    Most = Delivered + Unconfirmed + maps:get(uncertain, Report),
    mesh_load:eventually(true, fun() ->
        Arrived = length(arrived_since(First, Chaos)),
        Taken = length(taken_along(maps:get(given_to, Report), Chaos)),
        (Delivered - Taken =< Arrived andalso Arrived =< Most) orelse
            {{delivered, Delivered}, {taken, Taken}, {arrived, Arrived}, {most, Most}}
    end);
assert_arrivals(_Kind, _Report, _Chaos) ->
    ok.

%% A stranger gets nothing, and is known as one.
assert_strangers(strangers, Report, #{number := First, dir := Dir} = Chaos) ->
    Here = lines(log(Dir, listener)),
    ?assertEqual([], arrived_since(First, Chaos) -- Here),
    Why = {connect_failed, {unverified, wrong_key}},
    ?assert(lists:any(fun({{_, Each}, _}) -> Each =:= Why end, maps:get(refused, Report)));
assert_strangers(_Kind, _Report, _Chaos) ->
    ok.

%% What was given for a node before it died, and did not arrive.
taken_along(Given, #{ends := Ends} = Chaos) ->
    Last = maps:from_list(lists:sort(Ends)),
    Arrived = arrived_set(Chaos),
    [
        Number
     || {Number, Node, At} <- Given,
        At =< maps:get(Node, Last, 0) + ?LATE_MS,
        not sets:is_element(integer_to_binary(Number), Arrived)
    ].

%% After the storm every node is there, though its connection may have to be made anew: from the
%% first of its messages that is confirmed on, each is.
assert_reachable(Targets, #{vm := Vm} = Chaos) ->
    Reach = fun(Target, #{number := Number} = Before) ->
        Reached = mesh_vm:call(Vm, mesh_callers, reach, [Target, ?REACHES, Number]),
        ?assertMatch({_, #{told := [ok]}}, {Target, Reached}),
        {maps:get(confirmed, Reached), unsent(Reached, Before#{number := maps:get(next, Reached)})}
    end,
    {Reached, After} = lists:mapfoldl(Reach, Chaos, Targets),
    Confirmed = lists:append(Reached),
    assert_evidence(Confirmed, After),
    IsCounted = fun() -> stat(Vm, messages_delivered) >= length(Confirmed) end,
    mesh_load:eventually(true, IsCounted),
    After.

%% Of what `send/5' said that nothing was sent, in this act and those before it.
unsent(#{unsent := Now}, #{unsent := Before} = Chaos) -> Chaos#{unsent := Now ++ Before}.

%% How many messages of callers were confirmed in storms, by node.
noted(calm, _Report, Chaos) ->
    Chaos;
noted(_Storm, #{confirmed := Confirmed}, #{reached := Reached} = Chaos) ->
    Exempt = [Each || Each <- Confirmed, is_exempt(Each, Chaos)],
    ct:pal("~b of ~b confirmed messages are exempt", [length(Exempt), length(Confirmed)]),
    %% These, too: a node that dies in each act may have no others.
    Count = fun({_, Node, _}, Counts) -> Counts#{Node => maps:get(Node, Counts, 0) + 1} end,
    Chaos#{reached := lists:foldl(Count, Reached, Confirmed)}.

assert_each_was_reached(#{reached := Reached} = Chaos) ->
    ct:pal("confirmed in storms: ~p", [Reached]),
    ?assertEqual([], [Node || {Node, _} <- targets(Chaos), not is_map_key(Node, Reached)]).

%% A storm without a fault proves nothing of it. Those of the lines are told by the relays, too.
assert_each_struck(#{struck := Struck, faults := Faults, relays := Relays}) ->
    ct:pal("faults: ~p", [Struck]),
    ?assertEqual([], [Fault || Fault <- Faults ++ certain(deaths), not is_map_key(Fault, Struck)]),
    Stats = [mesh_relay:stats(Relay) || Relay <- maps:values(Relays)],
    Packets = [lost, duplicated, reordered, corrupted, too_long, blacked_out],
    Ways = [maps:get(Way, Each) || Each <- Stats, Way <- [up, down]],
    Counts = [{Fate, lists:sum([maps:get(Fate, Way) || Way <- Ways])} || Fate <- Packets],
    Rebinds = lists:sum([maps:get(rebinds, Each) || Each <- Stats]),
    ct:pal("packets: ~p, rebinds: ~b", [Counts, Rebinds]),
    ?assertEqual([], [Fate || {Fate, 0} <- [{rebinds, Rebinds} | Counts]]).

%% What was confirmed arrived, though it may be read a little later; nothing did twice or damaged,
%% nor what was told as not sent.
assert_evidence(Confirmed, Chaos) ->
    mesh_load:eventually([], fun() -> missing(Confirmed, Chaos) end),
    Lines = arrived(Chaos),
    ?assertNot(lists:member(<<"corrupt">>, Lines)),
    ?assertEqual(length(Lines), length(lists:usort(Lines))),
    ?assertEqual([], arrived_of(maps:get(unsent, Chaos), Chaos)).

missing(Confirmed, Chaos) ->
    Judged = [Each || Each <- Confirmed, not is_exempt(Each, Chaos)],
    Judged -- arrived_of(Judged, Chaos).

%% Whether a message was confirmed so near to the end of its node that it may be gone with it.
is_exempt({_Number, Node, At}, #{ends := Ends} = Chaos) ->
    IsNear = fun({Of, End}) ->
        Of =:= Node andalso At =< End + ?LATE_MS andalso
            End - ?GRACE_MS =< At + stood_between(At, End, Chaos)
    end,
    lists:any(IsNear, Ends).

stood_between(From, To, #{stood := Stood}) ->
    lists:sum([Ms || {At, Ms} <- Stood, From =< At + Ms, At =< To]).

arrived_of(Messages, Chaos) ->
    Arrived = arrived_set(Chaos),
    [Each || Each <- Messages, sets:is_element(integer_to_binary(element(1, Each)), Arrived)].

arrived_set(Chaos) -> sets:from_list(arrived(Chaos), [{version, 2}]).

%% Those of this act.
arrived_since(First, Chaos) ->
    [Line || Line <- arrived(Chaos), Line =/= <<"corrupt">>, binary_to_integer(Line) >= First].

arrived(#{dir := Dir}) ->
    Nodes = [mortal, other, relayed, shaky, named, named_too, listener],
    lists:append([lines(log(Dir, Node)) || Node <- Nodes]).

lines(File) ->
    case file:read_file(File) of
        {ok, Text} -> binary:split(Text, <<"\n">>, [global, trim_all]);
        {error, enoent} -> []
    end.

%% The listener has no more than at its beginning.
assert_listener_at_rest(#{listener := Listener, listener_base := Base}) ->
    Connections = fun() -> mesh_vm:call(Listener, mesh_callers, connections, []) end,
    mesh_load:eventually(0, Connections),
    mesh_load:eventually(#{}, fun() -> mesh_vm:grown(remains(Listener), Base) end).

%% The first act shows what the VM has when it is warm; after the others, it has no more.
assert_nothing_left(#{vm := Vm, base := none} = Chaos) ->
    mesh_load:eventually(0, fun() -> maps:get(tasks, remains(Vm)) end),
    Chaos#{base := (remains(Vm))#{tasks := 0}, memory => mesh_vm:memory_kib(Vm)};
assert_nothing_left(#{vm := Vm, base := Base, memory := Before, samples := Samples} = Chaos) ->
    mesh_load:eventually(#{}, fun() -> mesh_vm:grown(remains(Vm), Base) end),
    %% With the last task, the buffers have gone that are kept for what may still come.
    After = mesh_vm:memory_kib(Vm),
    ct:pal("RSS ~b KiB, ~b at first", [After, Before]),
    ?assert(After < Before + ?MEMORY_KIB),
    Kib = mesh_vm:call(Vm, erlang, memory, [total]) div 1_024,
    Chaos#{samples := [#{ms => now_ms(), memory_kib => Kib} | Samples]}.

%% What the VM itself has does not grow with the storms.
assert_steady(Samples) when length(Samples) < ?ACTS ->
    ok;
assert_steady(Samples) ->
    #{growth := Growth, noise := Noise, grain := Grain} = mesh_soak:trend(memory_kib, Samples),
    ct:pal("memory of the VM: ~p KiB; ~.1f in that time, noise ~.1f", [
        [Kib || #{memory_kib := Kib} <- Samples], Growth, Noise
    ]),
    ?assert(Growth < max(Noise, Grain), {memory_kib, Growth}).

%% Once a pool of its own stands beside it, the runtime tells its tasks.
remains(Vm) ->
    ok = mesh_vm:call(Vm, start_pool, [?OPTIONS]),
    Tasks = stat(Vm, runtime_tasks),
    ok = mesh_vm:call(Vm, stop_pool, []),
    (mesh_vm:footprint(Vm))#{tasks => Tasks}.

stat(Vm, Key) ->
    {ok, #{Key := Value}} = mesh_vm:call(Vm, get_stats, [?POOL]),
    Value.

pick(List) -> lists:nth(rand:uniform(length(List)), List).

now_ms() -> erlang:monotonic_time(millisecond).
